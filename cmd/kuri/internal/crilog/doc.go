// Package crilog reads the log files that CRI runtimes write for containers. A line is
//
//	2016-10-06T00:17:09.669794202Z stdout P log content
//
// with the time in RFC3339Nano, the stream, a tag that is F where the program's own line ends and P where only the
// runtime's buffer did, and the content. See CRI logging design in the Kubernetes repository.
//
// [Read] reads a log with its rotated files, compressed ones too, and follows it through rotation: the log is renamed and a
// new file takes the path. A file may hold anything, it is the container's output: lines are bounded, and one that is not
// in the format is handed on as it is.
//
// The package only reads. Nothing is shared between two calls.
package crilog
