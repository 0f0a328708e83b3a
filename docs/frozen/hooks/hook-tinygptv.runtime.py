"""Tells PyInstaller what tinygptv needs besides its modules: the demo bundle, which is data."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("tinygptv.runtime", subdir="demo")
