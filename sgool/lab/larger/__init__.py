"""A larger embedded world, and how its networks are trained in short slices on one GPU. See docs/larger-world.md."""
