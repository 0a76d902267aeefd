"""``ctflow app``: reports become chest CTs in the browser; the server, the page and its viewer."""
