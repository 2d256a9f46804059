"""Reports that can be checked: sealed, verified, bundled, compared."""
