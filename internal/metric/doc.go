// Package metric defines the metrics of containers and pods. Names, types and labels are those of
// cAdvisor, which dashboards, alerts and autoscalers query.
//
// It is pure: it reads nothing, keeps nothing, and is safe for concurrent use. A value that is
// missing from a reading is omitted from the output.
package metric
