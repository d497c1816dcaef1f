// Package crilog reads the log files that CRI runtimes write for containers. A line is
//
//	2016-10-06T00:17:09.669794202Z stdout P log content
//
// with the time in RFC3339Nano, the stream, a tag and the content. The tag is F if the program's
// own line ends, and P if only the runtime's buffer was full. See CRI logging design in the
// Kubernetes repository.
//
// [Read] reads a log with its rotated files, also compressed ones, and follows it through rotation:
// the log is renamed and a new file is created at the path. A log has the container's output and
// may contain anything. So lines are bounded, and a line in another format is passed on unchanged.
//
// The package only reads. Calls share no state.
package crilog
