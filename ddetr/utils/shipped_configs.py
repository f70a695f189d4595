"""The configs that come with ddetr, by name: from a checkout, or from inside an installed package."""

from pathlib import Path

from .errors import ConfigError, did_you_mean


def config_root() -> Path:
    """The folder of the configs: inside the package where it was installed from a wheel, else beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / 'configs'  # setup.py puts it there
    return inside if inside.is_dir() else package.parent / 'configs'


def list_configs() -> dict[str, Path]:
    """The files of all complete configs by name, sorted; not those that others only build on (`_base_`)."""
    files = config_root().glob('*/*.py')
    return {path.stem: path for path in sorted(files) if path.parent.name != '_base_'}


def find_config(config: str | Path) -> Path:
    """The file of a config that is given by its path, or by the name of one that comes with ddetr.

    Raises:
        ConfigError: There is neither such a file nor such a name.
    """
    path = Path(config).expanduser()
    if path.is_file():
        return path
    known, name = list_configs(), path.name.removesuffix('.py')
    if name in known:
        family = known[name].parent.name
        if path.parent.parts in ((), (family,), (config_root().name, family)):
            return known[name]
    if path.is_dir():
        raise ConfigError(
            f'config {config} is a folder: give a file in it, or a name that `ddetr configs` lists.'
        )
    hint = did_you_mean(name, known, '; `ddetr configs` lists those that come with ddetr.')
    raise ConfigError(f'config {config} does not exist: give the path of a config file, or a name{hint}')
