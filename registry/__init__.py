"""The built-in plug-ins, one file per method family; installed as the package `milbench_registry`."""
