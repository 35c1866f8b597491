"""What papers print: the numbers and errata of results/published."""
