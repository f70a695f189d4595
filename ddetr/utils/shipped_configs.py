"""Configs shipped with ddetr, by name: in a checkout or inside the installed package."""

from pathlib import Path

from .errors import ConfigError, did_you_mean


def config_root() -> Path:
    """Folder of the configs: inside the package if installed from a wheel, else beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / 'configs'  # setup.py puts it there
    return inside if inside.is_dir() else package.parent / 'configs'


def list_configs() -> dict[str, Path]:
    """Paths of all complete configs by name, sorted; without the `_base_` files."""
    files = config_root().glob('*/*.py')
    return {path.stem: path for path in sorted(files) if path.parent.name != '_base_'}


def find_config(config: str | Path) -> Path:
    """Path of a config given by its path or by the name of a shipped config.

    Raises:
        ConfigError: Neither a file nor a shipped config has this name.
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
