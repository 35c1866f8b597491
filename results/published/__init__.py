"""Numbers that papers print, as CSV files; installed as the package `milbench_published`."""
