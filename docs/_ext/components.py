"""Sphinx directive `components REGISTRY`: every component that ddetr registers there, by name, from its docstring."""

import inspect

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Components(SphinxDirective):
    """`.. components:: MODELS` lists the registry `ddetr.registry.MODELS`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        from ddetr import registry

        chosen = getattr(registry, self.arguments[0])
        chosen.import_from_location()
        names: dict[object, list[str]] = {}
        for name, component in sorted(chosen.module_dict.items()):
            if component.__module__.startswith('ddetr.'):
                names.setdefault(component, []).append(name)
        lines = []
        for component, registered in names.items():
            kind = 'class' if inspect.isclass(component) else 'function'
            lines += [f'.. auto{kind}:: {component.__module__}.{component.__qualname__}', '']
            aliases = [f"``'{name}'``" for name in registered if name != component.__name__]
            if aliases:
                lines += [f'   Registered as {" and ".join(aliases)} too.', '']
        container = nodes.container()
        self.state.nested_parse(StringList(lines, self.arguments[0]), self.content_offset, container)
        return container.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive('components', Components)
    return {'parallel_read_safe': True}
