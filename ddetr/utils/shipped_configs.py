"""Find the configs shipped with ddetr, in a checkout or in the installed package."""

from pathlib import Path

from .errors import ConfigError, did_you_mean


def config_root() -> Path:
    """Config folder: inside the package if installed from a wheel, otherwise beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / 'configs'  # copied there by setup.py
    return inside if inside.is_dir() else package.parent / 'configs'


def list_configs() -> dict[str, Path]:
    """Paths of all shipped configs by name, sorted; excludes the `_base_` files."""
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
        raise ConfigError(f'config {config} is a folder: pass a config file, or a name from `ddetr configs`.')
    hint = did_you_mean(name, known, '; `ddetr configs` lists the shipped configs.')
    raise ConfigError(f'config {config} does not exist: pass the path or the name of a config{hint}')
