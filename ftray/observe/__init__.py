"""What others see while ftray works: spans, log lines for machines, and numbers for Prometheus. Records come first."""
