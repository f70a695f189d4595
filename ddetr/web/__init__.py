"""The web demo: a page in the browser, and the server behind it. `ddetr demo` starts it."""
