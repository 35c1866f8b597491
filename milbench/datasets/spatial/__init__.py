"""Generated slides with a known answer: tissue, the rules that label it, and datasets made of both."""
