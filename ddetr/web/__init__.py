"""Web demo: a browser page and its server, started by `ddetr demo`."""
