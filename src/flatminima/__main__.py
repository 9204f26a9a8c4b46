"""`python -m flatminima`; like the installed command, without the current folder on the import path."""

import os
import sys

if __name__ == "__main__":
    # -m puts the current folder first: model code comes from there only with --app-dir
    if not sys.flags.safe_path and sys.path and os.path.realpath(sys.path[0]) == os.path.realpath(os.getcwd()):
        del sys.path[0]
    from flatminima.cli import main

    main()
