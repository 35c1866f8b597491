"""What a person calls: the command line, a notebook or a script. `milbench.NAME` finds these functions by itself.

One file for each subject: models, data, runs, results, comparisons, reports, analyses, profiles, lists, templates.
"""
