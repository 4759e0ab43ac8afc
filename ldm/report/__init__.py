"""The HTML page of a benchmark run, made of its results.json and the frames that it names."""
