// Package inspect has kuri inspect: a pod, a container or an image as a page for people, or as the runtime's own data.
package inspect
