package ledger

import (
	"context"

	"golang.org/x/mod/sumdb/tlog"
)

// Storage keeps a log: lines, hashes, checkpoints, and how far the event feed was read. [OpenDir] is one in files. One
// Ledger has a Storage at a time, and an implementation makes sure of it across processes.
//
// A Ledger calls Append, PutCheckpoint and Drop one at a time; the other methods may be called at any time, by many. Memory given
// in is not kept, memory given out is the caller's.
type Storage interface {
	// State is what the last Append made durable.
	State() State
	// Append writes lines behind State.Size, with the hashes that they complete, and then remembers place: all of it or nothing,
	// durable when it returns nil. After an error the outcome is what State says.
	Append(ctx context.Context, b Batch) error
	// Lines returns up to max lines, without their newlines, from position from on; fewer at the end of what is kept, or where
	// it suits the storage, never none before the end. An error for what was dropped.
	Lines(ctx context.Context, from int64, max int) ([][]byte, error)
	// ReadHashes is tlog.HashReader. Hashes outlive Drop.
	ReadHashes(indexes []int64) ([]tlog.Hash, error)
	// Find tells the position of the event with an ID, -1 where none that is kept has it.
	Find(ctx context.Context, id string) (int64, error)

	// PutCheckpoint keeps a signed checkpoint, in place of one of equal size.
	PutCheckpoint(ctx context.Context, size int64, signed []byte) error
	// Checkpoints returns up to max kept checkpoints of sizes from minSize on, the smallest first.
	Checkpoints(ctx context.Context, minSize int64, max int) ([][]byte, error)

	// Drop forgets the lines before a position.
	Drop(ctx context.Context, before int64) error
	Close() error
}

// State is where a log stands.
type State struct {
	First int64     `json:"first"` // the oldest line that is kept
	Size  int64     `json:"size"`
	Root  tlog.Hash `json:"root"`
	Place []byte    `json:"place"`  // opaque: how far the feed was read
	MaxID string    `json:"max_id"` // the greatest ID, as strings compare, of all events ever appended
	// Dropped is the greatest ID of the events that Drop forgot.
	Dropped string `json:"dropped,omitempty"`
}

// Batch is one step of a log.
type Batch struct {
	Lines  [][]byte    // without newlines; none: only Place moved
	IDs    []string    // of the events, one for each line
	Hashes []tlog.Hash // from tlog.StoredHashCount(State.Size) on
	Root   tlog.Hash   // afterwards
	Place  []byte
}
