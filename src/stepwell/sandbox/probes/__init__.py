"""Attempts to get out of the sandbox. Each is a program of its own: `escape(arena)` returns what it reached, or "".

They import nothing but the standard library, and are run by `stepwell.sandbox.check` only: inside a sandbox, where they
must reach nothing, and, those that do no harm, by the tests outside of one, where they must reach something.
"""
