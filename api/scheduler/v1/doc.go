// Package schedulerv1 is the protocol between peers and schedulers, as code
// that make generate writes from scheduler.proto. What its messages mean in
// terms of events and actions is in internal/scheduler/wire; nothing else uses
// them.
package schedulerv1
