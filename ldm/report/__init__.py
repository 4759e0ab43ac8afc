"""The HTML report of a benchmark, made from results.json and the frames that it refers to."""
