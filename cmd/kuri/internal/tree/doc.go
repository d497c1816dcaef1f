// Package tree turns files of this machine into a tar and the tar that a container sends into files of this machine.
//
// What a container sends is hostile. [Unpack] writes below one directory and nowhere else: the kernel resolves every name
// from there (os.Root); links are made last, so that none stands on the way of a file; every file is made new, under another name until all of it is there,
// so that nothing is written into what a name led to before; what is neither file, directory nor link is left out.
package tree
