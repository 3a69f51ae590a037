"""The HTTP interface: thin routes over the nouns, with one gate in front of all of them."""
