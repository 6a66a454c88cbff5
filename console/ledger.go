package console

import (
	"context"
	"time"
)

// Ledger verifies the audit trail for the page of events. The package ledger/ledgerconsole makes one of a ledger.
type Ledger interface {
	// Verify holds the log against checkpoint, a signed one that somebody kept (empty: the log's own alone), and with store
	// also the service's store against the log. A Verdict is what was found; an error means that it could not be looked at.
	Verify(ctx context.Context, checkpoint []byte, store bool) (Verdict, error)
	// Proof is the place of an event in the log and the proof that it is there, as JSON. apitoken.ErrNotFound: it is not in the
	// log, or under no checkpoint yet.
	Proof(ctx context.Context, eventID string) (position, size int64, proof []byte, err error)
	// Status is how far the log reaches: records, and until when all of them are under a checkpoint.
	Status() (size int64, sealed time.Time)
}

// Verdict is what a Ledger found.
type Verdict struct {
	Changed string // what was edited, removed or added; empty: nothing
	Yours   int64  // records that the given checkpoint covers; zero: none was given
	Size    int64  // records that the newest checkpoint covers
	Took    time.Duration
}
