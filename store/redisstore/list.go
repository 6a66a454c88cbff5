package redisstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/apitoken-go/apitoken/internal/cursor"
	"github.com/apitoken-go/apitoken/store"
)

// List implements [store.Store]. Limit 0 means 1000. A page may have fewer records than Limit and a Cursor: it has about
// a megabyte at most. Of several selectors of records one is looked up, the token, grant, subject, client or type, in this
// order, and the records that have it are compared with the others, some thousands in a call of the server.
//
// Events lie in blocks of 4096, each with an index of hashes, one for each selector. A query goes through the hashes of all
// its selectors and reads an event only if every one matches. A selector that no event has costs a millisecond of the server
// for each 70,000 events, a second one that many have as much again; two that many events have, but never the same event,
// a millisecond for each 4,000. By two selectors the server is busy with the index for some four milliseconds at a time. Since and Until
// leave out blocks. Events are never late, and a cursor of them outlives a loss of history: behind events that were lost it
// continues with those that came in their place.
func (n *space) List(ctx context.Context, q store.Query) (store.Page, error) {
	ctx, cancel := n.bounded(ctx)
	defer cancel()
	if err := n.usable(ctx); err != nil {
		return store.Page{}, err
	}
	if possible, err := q.Check(); !possible {
		return store.Page{}, err
	}
	place, err := cursor.Place(&q)
	if err != nil {
		return store.Page{}, err
	}
	// What is asked may outlive the call.
	for _, s := range [...]*string{(*string)(&q.Kind), &q.Subject, &q.Client, &q.Grant, &q.Token, &q.Type} {
		*s = strings.Clone(*s)
	}
	switch {
	case q.Kind == store.KindEvent:
		return n.listEvents(ctx, &q, place)
	case q.Ends():
		return n.listEnds(ctx, &q, place)
	}
	return n.listRecords(ctx, &q, place)
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

func (n *space) listRecords(ctx context.Context, q *store.Query, place string) (store.Page, error) {
	term := ""
	if xs := selectors(q); len(xs) > 0 {
		term = letters[xs[0].field:xs[0].field+1] + xs[0].s
	}
	for {
		from := "-"
		switch {
		case place != "":
			from = "(" + place
		case q.Newest:
			from = "+"
		}
		r, l, err := n.ask(ctx, scriptRecords, string(q.Kind), term, flag(q.Newest), from, q.Limit, q.Since, q.Until,
			q.Subject, q.Client, q.Grant, q.Token, q.Type, q.ExpiresBefore)
		if err != nil {
			return store.Page{}, err
		}
		page, err := readPage(q, r, 1, l.id)
		if err != nil {
			return store.Page{}, err
		}
		if place = str(r[0]); place == "" {
			return page, nil
		}
		if len(page.Records) > 0 {
			page.Cursor = cursor.Text(q, place)
			return page, nil
		}
	}
}

// readPage reads what a script answered: what it is to go on behind, in so many values, and then each record's id and text.
func readPage(q *store.Query, r []any, head int, history uint64) (page store.Page, err error) {
	if len(r) < head || (len(r)-head)%2 != 0 {
		return page, errValue("the answer to List does not read")
	}
	for i := head; i < len(r); i += 2 {
		rec, err := decodeRecord(q.Kind, str(r[i]), str(r[i+1]), history)
		if err != nil {
			return store.Page{}, err
		}
		page.Records = append(page.Records, rec)
	}
	return page, nil
}

// listEnds pages through what expires. A place is a time of the expiry index and an id.
func (n *space) listEnds(ctx context.Context, q *store.Query, place string) (store.Page, error) {
	score, id, ok := strings.Cut(place, " ")
	if place != "" && (!ok || !isTime(score)) {
		return store.Page{}, cursor.ErrUnreadable
	}
	for {
		r, l, err := n.ask(ctx, scriptEnds, string(q.Kind), q.ExpiresBefore, q.Limit, q.Since, q.Until, score, id)
		if err != nil {
			return store.Page{}, err
		}
		page, err := readPage(q, r, 2, l.id)
		if err != nil {
			return store.Page{}, err
		}
		if score, id = str(r[0]), str(r[1]); score == "" {
			return page, nil
		}
		if len(page.Records) > 0 {
			page.Cursor = cursor.Text(q, score+" "+id)
			return page, nil
		}
	}
}

func (n *space) listEvents(ctx context.Context, q *store.Query, place string) (store.Page, error) {
	history, at, purges := "", "0", "0"
	if place != "" {
		part := strings.Split(place, " ")
		if len(part) != 3 || !isHistory(part[0]) || !isCount(part[1]) || !isCount(part[2]) {
			return store.Page{}, cursor.ErrUnreadable
		}
		history, at, purges = part[0], part[1], part[2]
	}
	var terms []any
	for _, x := range selectors(q) {
		terms = append(terms, hashTerm(x.field, x.s), x.field+1)
	}
	for {
		r, l, err := n.ask(ctx, scriptEvents, append([]any{history, at, flag(q.Newest), q.Limit, q.Since, q.Until,
			q.Subject, q.Client, q.Grant, q.Token, q.Type, purges}, terms...)...)
		if err != nil {
			return store.Page{}, err
		}
		switch str(r[0]) {
		case "C":
			return store.Page{}, errValue(fmt.Sprintf("column %q of the index of events is missing", r[1:]))
		case "T":
			return store.Page{}, fmt.Errorf("%w: events behind it were purged, or it is of a history that is not known", store.ErrTrimmed)
		}
		if len(r) < 2 {
			return store.Page{}, errValue("the answer to List does not read")
		}
		var page store.Page
		for _, v := range r[2:] {
			rec, err := decodeEvent(str(v))
			if err != nil {
				return store.Page{}, err
			}
			page.Records = append(page.Records, rec)
		}
		last := str(r[0])
		if last == "" {
			return page, nil
		}
		history, at, purges = l.text, last, str(r[1])
		if len(page.Records) > 0 {
			page.Cursor = cursor.Text(q, history+" "+at+" "+purges)
			return page, nil
		}
	}
}

func isHistory(s string) bool {
	_, err := strconv.ParseUint(s, 16, 64)
	return err == nil && len(s) == 16
}

func isCount(s string) bool {
	n, err := strconv.ParseInt(s, 10, 54)
	return err == nil && n >= 0
}

// isTime reports whether s is a time of the expiry index, as Redis writes it: one that has more than 17 digits has an exponent.
func isTime(s string) bool {
	f, err := strconv.ParseFloat(s, 64)
	return err == nil && f >= 0
}
