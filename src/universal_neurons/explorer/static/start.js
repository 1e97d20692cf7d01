// Last of a page's scripts: everything is there, draw.
un.start();
