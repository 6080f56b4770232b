"""What the benchmark scripts share: models, the length rule, measuring, workers, tables. No part of the package."""
