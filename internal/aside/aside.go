// Package aside is what an operator can do about stored records that cannot be read, because they are damaged or a newer version wrote
// them: they are listed, repaired and ended. Meanwhile whatever depends on such a record is refused, and nothing else.
//
// It promises that nothing that was refused becomes good: what is written in place of a record is at least as strict as the record
// may have been. It knows the forms of all kinds, and owns none of them. It holds no lock: List looks first at what the follower has
// set aside, then at the store. The root's Unreadable, Repair and Remove call it.
package aside

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/deliver"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/internal/mover"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/internal/note"
	"github.com/apitoken-go/apitoken/internal/once"
	"github.com/apitoken-go/apitoken/internal/roles"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/ticket"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Records are those of one service. All fields are required.
type Records struct {
	Writer *commit.Writer
	Now    func() time.Time
	// Event adds to c that r was repaired or removed, as how says.
	Event func(ctx context.Context, c *commit.Change, how string, r store.Record)
}

// Record is a stored record that cannot be read.
type Record struct {
	Kind store.Kind
	ID   string
	Data []byte
	Err  error // why
}

// kinds are those of records that have a form, in the order in which List has them. Counts are not among them: internal/quota makes one
// that it cannot read anew.
var kinds = []store.Kind{store.KindMeta, store.KindKey, store.KindRole, store.KindClient, store.KindRule, store.KindAPIKey,
	grant.Kind, ticket.Kind, once.Kind, usage.Kind, usage.KindSpent, deliver.Kind, note.Kind, namespace.CopyKind}

// The forms of what holds scopes, which are texts here.
var (
	role     = roles.RoleForm[string]()
	session  = grant.Form[string]()
	prepared = ticket.Form[string]()
)

// readable reports why a record cannot be read; nil: it can.
func readable(r store.Record) error {
	switch r.Kind {
	case store.KindMeta:
		switch r.ID {
		case namespace.ID:
			return commit.Read(&namespace.MetaForm, r, new(namespace.Record))
		case namespace.MovedID:
			return commit.Read(&namespace.MovedForm, r, new(namespace.Tombstone))
		}
	case store.KindKey:
		return keyring.Readable(r)
	case store.KindRole:
		return commit.Read(role, r, new(roles.Record[string]))
	case store.KindClient:
		return commit.Read(&clients.ClientForm, r, new(clients.Record))
	case store.KindRule:
		_, err := rules.ReadRule(r)
		return err
	case store.KindAPIKey:
		return commit.Read(&apikey.Form, r, new(apikey.Record))
	case grant.Kind:
		return commit.Read(session, r, new(grant.Record[string]))
	case ticket.Kind:
		return commit.Read(prepared, r, new(ticket.Record[string]))
	case once.Kind:
		if len(r.Data) > 0 { // without content it says that something was used
			return commit.Read(&once.Form, r, new(once.Record))
		}
	case usage.Kind:
		return commit.Read(&usage.UseForm, r, new(usage.Record))
	case usage.KindSpent:
		return commit.Read(&usage.SpentForm, r, new(usage.Spent))
	case deliver.Kind:
		return commit.Read(&deliver.CursorForm, r, new(deliver.Cursor))
	case note.Kind:
		if r.Client != "" { // others have no form
			return commit.Read(&note.Form, r, new(note.Record))
		}
	case namespace.CopyKind:
		return commit.Read(&mover.CopyForm, r, new(mover.Mark))
	}
	return nil
}

// List lists the stored records that cannot be read: first those that this process met and set aside, then, with all, every other one
// in the store, which reads the whole store.
func (x *Records) List(ctx context.Context, all bool) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		asides := x.Writer.State.Asides()
		byKind := func(a, b follow.Name) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID)) }
		for _, n := range slices.SortedFunc(maps.Keys(asides), byKind) {
			r, err := x.Writer.Get(ctx, n.Kind, n.ID)
			if errors.Is(err, fault.NotFound) || err == nil && x.over(r) {
				continue // ended since
			}
			if !yield(Record{Kind: n.Kind, ID: n.ID, Data: r.Data, Err: asides[n]}, err) {
				return
			}
		}
		if !all {
			return
		}

		for _, kind := range kinds {
			for r, err := range x.Writer.Pages(ctx, store.Query{Kind: kind}, "", 0) {
				if err != nil {
					yield(Record{Kind: kind}, err)
					return
				}
				_, known := asides[follow.Name{Kind: kind, ID: r.ID}]
				if why := readable(r); why != nil && !known && !x.over(r) && !yield(Record{Kind: kind, ID: r.ID, Data: r.Data, Err: why}, nil) {
					return
				}
			}
		}
	}
}

func (x *Records) over(r store.Record) bool {
	return r.Expires != 0 && r.Expires <= x.Now().UnixMilli()
}

// Repair replaces the content of a record that cannot be read. InvalidRequest: the record can be read, or data cannot. NotFound:
// there is no such record.
func (x *Records) Repair(ctx context.Context, kind store.Kind, id string, data []byte) error {
	return x.mend(ctx, kind, id, "repaired", func(c *commit.Change, r store.Record) error {
		if kind == store.KindRule {
			return putRule(c, r, data)
		}
		r.Data = data
		if err := readable(r); err != nil {
			return &fault.Error{Code: fault.InvalidRequest, Detail: "the new content of " + string(kind) + " " + id + " cannot be read", Cause: err}
		}
		return commit.Bare(c, r, r.Version)
	})
}

// putRule writes a rule in place of one that can't be read. The place in the order of changes stays what it was, or what is
// newer than the rule would be refused as well.
func putRule(c *commit.Change, r store.Record, data []byte) error {
	at := r.Pos.N
	x, err := rules.ReadRule(store.Record{Kind: r.Kind, ID: r.ID, Data: data, Pos: r.Pos})
	if err != nil {
		return &fault.Error{Code: fault.InvalidRequest, Detail: "the new content of rule " + r.ID + " cannot be read", Cause: err}
	}
	if x.Q == 0 || x.Q > at {
		x.Q = at
	}
	return commit.Put(c, &rules.RuleForm, r, &x, r.Version)
}

// Remove ends a record that cannot be read: a revocation is replaced by the widest one that the record may have been, a client by a
// disabled one without a credential, a role by one without scopes, an API key by a revoked one; what else there is expires.
// InvalidRequest: the record can be read, or the service can't be without it. NotFound: there is no such record.
func (x *Records) Remove(ctx context.Context, kind store.Kind, id string) error {
	return x.mend(ctx, kind, id, "removed", func(c *commit.Change, r store.Record) error {
		now := x.Now().UnixMilli()
		switch kind {
		case store.KindMeta, store.KindKey:
			if kind == store.KindMeta || !strings.Contains(id, ".") { // the lock of the signing keys
				return fault.Fail(fault.InvalidRequest, "without the record %q there is no service: repair it", id)
			}
		case store.KindRule:
			rule := rules.Widest(r)
			rule.Reason, rule.At = "in place of a record that could not be read", max(rule.At, 0)
			return commit.Put(c, &rules.RuleForm, r, &rule, r.Version)
		case store.KindClient:
			return commit.Put(c, &clients.ClientForm, r, &clients.Record{V: 1, Disabled: true, Created: now}, r.Version)
		case store.KindRole:
			return commit.Put(c, role, r, &roles.Record[string]{V: 1}, r.Version)
		case store.KindAPIKey:
			return commit.Put(c, &apikey.Form, r, &apikey.Record{V: 1, Subject: r.Subject, Created: now, Revoked: now}, r.Version)
		}
		// Nobody could use it, and Purge takes it away.
		r.Expires = now
		return commit.Bare(c, r, r.Version)
	})
}

// mend writes what f makes of a record that cannot be read.
func (x *Records) mend(ctx context.Context, kind store.Kind, id, how string, f func(*commit.Change, store.Record) error) error {
	if !slices.Contains(kinds, kind) {
		return fault.Fail(fault.InvalidRequest, "records of kind %q have no form", kind)
	}
	return commit.Retry("parallel changes of "+string(kind)+" "+id, func() error {
		r, err := x.Writer.Get(ctx, kind, id)
		if err != nil {
			return err
		}
		_, aside := x.Writer.State.Asides()[follow.Name{Kind: kind, ID: id}]
		if readable(r) == nil && !aside {
			return fault.Fail(fault.InvalidRequest, "%s %q can be read", kind, id)
		}
		c := commit.NewChange()
		if err := f(c, r); err != nil {
			return err
		}
		x.Event(ctx, c, how, r)
		_, err = x.Writer.Commit(ctx, c)
		return err
	})
}
