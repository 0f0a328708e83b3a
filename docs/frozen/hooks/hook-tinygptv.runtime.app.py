"""Tells PyInstaller what the window needs besides its modules: its icon and samples, which are data."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("tinygptv.runtime.app", subdir="artwork")
