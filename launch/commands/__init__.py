"""The words of the command line: a table of commands, how they take arguments and print help, and four of them."""
