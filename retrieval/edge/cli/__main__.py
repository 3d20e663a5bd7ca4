"""`python -m retrieval.edge.cli`, the same as the command `retrieval`."""

from retrieval.edge.cli import main

if __name__ == "__main__":
    main()
