// Package store is the contract between apitoken and the engine that keeps its records. A store knows nothing of
// tokens: it keeps records, writes a Change whole or not at all, and tells what changed, in commit order. All
// decisions about tokens are made once, in package apitoken, so that a store of one's own is an afternoon's work;
// storetest says when it is right.
package store

import (
	"context"
	"errors"
)

// Store keeps two things: records that change, and events that do not.
// A Store value is one namespace; keys, order and events of another are out of its reach.
// Get, Apply and Follow are linearizable: asked of the node that takes the writes, never of a replica.
// Every method is safe for concurrent use, holds no lock or transaction after it returns, and ends with ctx.
// Slices and strings given in are read, never kept or changed; those given out belong to the caller.
type Store interface {
	// Get returns one record, expired or not, or ErrNotFound. A kind or ID that no record can have is not found either; see
	// Kind.Possible.
	Get(ctx context.Context, kind Kind, id string) (Record, error)

	// Apply does all of c or nothing, durably, in one round trip.
	//   1. a put whose record already has Version c.ID: c was done before; return success, write nothing
	//   2. else a put whose record's Version differs from Expect: ErrConflict, write nothing
	//   3. else write, stamping Version, Written and (state kinds) Pos; append the events
	// What Check refuses is refused before anything else. ErrConflict, ErrReadOnly, ErrTooLarge and ErrInvalid mean not
	// done. Every other error, ctx.Err() too, means unknown: repeat the identical Change. One without Puts is not
	// repeated (the event might appear twice).
	// If ctx has ended before the call, Apply returns an error that means unknown and need not write. If it ends during
	// the call, the caller stops waiting; the write goes on under the store's own deadline, so c must not be altered
	// afterwards.
	Apply(ctx context.Context, c *Change) (Commit, error)

	// Follow returns the state records of kinds (nil or empty: all) written after a position, in order of Pos, each in its
	// newest form only: from the zero Position it is the snapshot, and Next is where to go on. It returns at once.
	// With More false the answer is complete: whatever was acknowledged before the call began is in it or in an
	// earlier one. At most max records come at once; if max is not positive, the store chooses, at least one. A record
	// may come twice, never not at all. ErrDiverged: after is not in this store's history
	// (restored backup, failover that lost its tail): read again from zero and MERGE, dropping no rule you hold.
	Follow(ctx context.Context, after Position, kinds []Kind, max int) (View, error)

	// List pages through records by ID, or events in their one final order, whose oldest-first reading is the
	// audit feed: no event ever appears before a Cursor already handed out, and one acknowledged before another
	// began comes first. It may lag (seconds); newest-first shows everything visible. Each page is one snapshot;
	// a record present throughout is in exactly one page. ErrTrimmed: Cursor is older than what is kept. Event places
	// never begin again, not even after every event was purged: a cursor is not ErrTrimmed unless events
	// after it were purged or lost. See Query for its limits.
	//
	// To go on with events behind a page whose Cursor is "", repeat its query with the same Cursor: the answer begins
	// with the same events, and new ones follow them. A listing of records is begun again.
	List(ctx context.Context, q Query) (Page, error)

	// Purge removes at most max records of kind with 0 < Expires < before, and never one that the store's own
	// clock calls alive: one is alive while Expires is 0 or later than now, so at Expires == now it may be removed.
	// Removal is no message: Follow does not report it, positions stay valid. ErrInvalid: no record can have this kind.
	Purge(ctx context.Context, kind Kind, before int64, max int) (int, error)
}

// Waker is optional. Wait returns when there may be something after p; it may return early, late or for nothing.
// Correctness never depends on it: the root polls as well.
type Waker interface {
	Wait(ctx context.Context, p Position) error
}

// Kind is the sort of a record. State kinds (rule, key, client, role, apikey, meta) change seldom, are wanted by every
// process, and get a Pos. Grants change often and get none. Events are only ever in Change.Events. A Kind is 1 to
// [MaxKind] bytes of UTF-8 without NUL.
type Kind string

// The kinds that package apitoken keeps. A store treats every kind that is not [Kind.State] and not KindEvent alike,
// whatever its name: hosts and adapters may keep records of their own in a namespace of their own.
const (
	KindRule   Kind = "rule"
	KindKey    Kind = "key"
	KindClient Kind = "client"
	KindRole   Kind = "role"
	KindAPIKey Kind = "apikey"
	KindMeta   Kind = "meta"  // settings that every process must share: the issuer, the longest lifetime
	KindEvent  Kind = "event" // only in Change.Events and in List
)

// State reports whether records of this kind get a Pos and appear in Follow.
func (k Kind) State() bool {
	switch k {
	case KindRule, KindKey, KindClient, KindRole, KindAPIKey, KindMeta:
		return true
	}
	return false
}

// Version is the ID of the Change that last wrote a record; zero: there is no record. It never repeats, so an
// expected Version cannot match a record that went and came back, and a retry recognises itself.
type Version [16]byte

// Position is a place in the order of the state records. N rises strictly with commits, may skip, and is at least
// the store's clock in ms << 16, so that it goes on rising after a restore. History changes whenever acknowledged
// writes may have been lost: each opening of a restored file, Postgres timeline, Redis master_replid, etcd cluster.
// A history that stayed the same over a restored file would revive sessions that were revoked since the backup.
type Position struct {
	History uint64
	N       int64
}

// Record is one record of a namespace, named by its kind and ID.
type Record struct {
	Kind    Kind
	ID      string   // 1-255 bytes, UTF-8 without NUL, ordered bytewise; time-ordered for grants and rules
	Version Version  // by the store
	Pos     Position // by the store, state kinds
	Written int64    // by the store's clock; all times are Unix ms, so that no engine rounds
	Expires int64    // 0: never; not negative. Alive while later than now. Get still returns it afterwards, until Purge
	// What List selects by: each at most MaxSelector bytes, UTF-8 without NUL. Fixed for the life of a record.
	Subject, Client, Grant, Token, Type string
	Data                                []byte // opaque, at most MaxData bytes
}

// Put writes the whole record if it is at version Expect (zero: must not exist).
// There is no delete: a record ends by a put with an Expires, and Purge.
type Put struct {
	Record
	Expect Version
}

// Change is one intent: its ID is fresh for the intent and the same at every retry. At most 16 puts, each record
// once, 16 events, 256 KiB in all: that fits an etcd Txn with its index keys. [Check] says what a Change may hold.
type Change struct {
	ID     Version
	Puts   []Put
	Events []Record
}

// Commit: Head is a Position no lower than that of any state change acknowledged before Apply began. A process
// whose view is older than Head catches up before it acts on, or returns, what it just wrote.
type Commit struct {
	Head Position
	// Now is the store's clock, for grace windows and drift alarms; an engine without one gives the caller's. A store that
	// does not let it go back must not let it stand still either, until the machine's has caught up: windows would not end.
	Now int64
}

// View is one answer of Follow.
type View struct {
	Records []Record
	Next    Position
	More    bool
	Now     int64
}

// Query says what List lists: records of a kind by their IDs, or events in their final order. A Kind that cannot be is
// ErrInvalid, as a Cursor may be that came from another Kind, direction or store; selectors that no record can have match
// none, and the page is empty.
//
// With ExpiresBefore and no selector a store reads what ends, by an index, and nothing else. The records come in an order of
// the store's own then, Newest or not; one may come twice, and one that is written again between two pages not at all.
type Query struct {
	Kind                                Kind
	Subject, Client, Grant, Token, Type string // all that are set must match
	Since, Until                        int64  // Written, half open; 0: no bound; a negative Since excludes none, a negative Until all
	ExpiresBefore                       int64  // only what has an Expires below it; 0: no bound; negative: nothing. Not for events
	Newest                              bool
	Cursor                              string // of the page before; opaque; "": from the beginning
	Limit                               int    // records in a page; outside of 1 to MaxLimit it means MaxLimit
}

// Page is one answer of List.
type Page struct {
	Records []Record
	Cursor  string // "": nothing more now; see List for how to go on
}

// What stores answer, for errors.Is. Any other error of Apply means that the outcome is unknown.
var (
	ErrNotFound = errors.New("store: not found")
	ErrConflict = errors.New("store: conflict")
	ErrDiverged = errors.New("store: store lost or replaced its history")
	ErrTrimmed  = errors.New("store: cursor older than what is kept")
	ErrReadOnly = errors.New("store: store moved, takes no writes")
	ErrTooLarge = errors.New("store: change too large")
)
