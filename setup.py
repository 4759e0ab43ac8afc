"""What a wheel holds. Everything else about the package is in pyproject.toml.

`mgld_vsr` has the console commands, and `mgld_vsr.product` the files that are no Python package: no module with a
common name, such as `main` or `scripts`, is installed.
"""

from setuptools import find_packages, setup

PRODUCT = ["constraints.txt", "scripts/*.py", "configs/**/*.yaml", "configs/**/*.md", "assets/**/*"]

setup(
    packages=[*find_packages(include=["ldm*", "basicsr_deg*"]), "mgld_vsr", "mgld_vsr.product"],
    package_dir={"mgld_vsr": "scripts/console", "mgld_vsr.product": "."},
    package_data={"ldm.report": ["page.*"], "mgld_vsr.product": PRODUCT},
    exclude_package_data={"mgld_vsr.product": ["**/__pycache__/*"]},
    include_package_data=False,
    script_name="setup.py",  # which setuptools leaves out of a package; by default it knows that of pip alone
)
