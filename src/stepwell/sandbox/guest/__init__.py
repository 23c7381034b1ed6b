"""What runs inside the sandbox: limits first, then the program (`solver`) or its tests (`tester`).

In there this folder is the package `guest` beside nothing but the standard library: it imports nothing of Stepwell.
"""
