// Package metric is the table of the metrics of containers and pods: names, types and labels as cAdvisor has them, which is
// what dashboards, alerts and autoscalers ask for, and how each follows from a reading.
//
// It is pure: it reads nothing, keeps nothing, and may be called by anyone at any time. A value that a reading lacks has no
// row; the others have theirs.
package metric
