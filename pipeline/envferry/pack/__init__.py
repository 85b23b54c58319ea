"""The stage that packs: listing a tree, its packages, what stays behind, and its SBOM."""
