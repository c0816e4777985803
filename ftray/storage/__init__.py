"""Where runs and adapters are kept beyond this machine: objects below a URL, and working copies of them."""
