// Package image has the verbs for images: kuri images, pull, load, save, tag, rmi, prune, history and kuri image. Load,
// save, tag, history, diff and check need Kuri's own runtime. The package keeps nothing on the node.
package image
