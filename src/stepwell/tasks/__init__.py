"""The tasks that studies are run on."""
