# Compiles Python sources to what py_compile leaves beside them. Standard input has them one after the
# other, "<size> <mtime> <name>\n" and the source; standard output gets "<size> <name>\n" and the file for
# each that compiles. Size and time of the source are in the file, as its interpreter checks them
# (PEP 552); of the machine it is made on nothing is.
import importlib._bootstrap_external as importer
import sys

stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
while head := stdin.readline():
    size, mtime, name = head[:-1].split(b" ", 2)
    source = stdin.read(int(size))
    path = "/" + name.decode("utf-8", "surrogateescape")
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        continue  # py_compile goes on too
    data = importer._code_to_timestamp_pyc(code, int(mtime), len(source))
    cached = importer.cache_from_source(path)[1:].encode("utf-8", "surrogateescape")
    stdout.write(b"%d %s\n" % (len(data), cached))
    stdout.write(data)
