"""``python -m replank_local``."""

from replank_local.main import main

main()
