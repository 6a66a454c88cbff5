package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/export"
	"github.com/apitoken-go/apitoken/operate"
)

type eventFilter struct {
	operate.Filter // what a store cannot select by
	q              apitoken.EventQuery
	kind, from, to string
	outcome        string
	limit          int
	follow         bool
}

func (a *app) eventsCommand() *cobra.Command {
	f := eventFilter{limit: 50}
	c := &cobra.Command{
		Use: "events", Short: "Read the audit trail, follow it", Args: exactly(0, ""),
		Long: `events prints audit events, the last ones, in their order. With --follow it waits for new ones until it is interrupted.
With --json each event is a line of JSON (JSON Lines), as package export writes them.`,
		RunE: func(c *cobra.Command, _ []string) error { return a.events(c.Context(), &f) },
	}
	s := c.Flags()
	s.StringVar(&f.q.Subject, "subject", "", "about one `subject`")
	s.StringVar(&f.q.Issuer, "issuer", "", "of the trusted issuer that --subject or --token comes from")
	s.StringVar(&f.q.Client, "client", "", "about one `client`")
	s.StringVar(&f.q.Grant, "session", "", "about one `session`")
	s.StringVar(&f.q.TokenID, "token", "", "about the token or API key with this `ID`")
	s.StringVar(&f.kind, "type", "", "of one `type`, such as token.revoked")
	s.StringVar(&f.Actor, "actor", "", "done by one `actor`")
	s.StringVar(&f.outcome, "outcome", "", "good, or bad: refusals and alerts")
	s.StringVar(&f.from, "from", "", "since a `time`, or how long ago: 2026-03-01, 12h")
	s.StringVar(&f.to, "to", "", "until a `time`, or how long ago")
	s.IntVar(&f.limit, "limit", f.limit, limitHelp)
	s.BoolVarP(&f.follow, "follow", "f", false, "wait for new events")
	return c
}

func (a *app) events(ctx context.Context, f *eventFilter) (err error) {
	if f.outcome != "" && f.outcome != "good" && f.outcome != "bad" {
		return usage("It is good or bad.", "--outcome cannot be read")
	}
	if f.follow && f.to != "" {
		return usage("", "--follow never ends, and --to does: give one of them")
	}
	f.Good, f.Bad = f.outcome == "good", f.outcome == "bad"
	f.q.Type = event.Type(f.kind)
	now := time.Now()
	if f.q.From, err = when(f.from, now); err != nil {
		return err
	}
	if f.q.To, err = when(f.to, now); err != nil {
		return err
	}
	s, err := a.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer s.close()
	last, err := a.lastEvents(ctx, s, f)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	from := time.Time{}
	for i := range last {
		seen[last[i].ID] = true
		if from.IsZero() || last[i].Time.Before(from) {
			from = last[i].Time
		}
		if err := a.event(&last[i]); err != nil {
			return err
		}
	}
	if !f.follow {
		return nil
	}
	// What follows is read in the log's final order; the first page repeats what was printed already.
	if from.IsZero() {
		status, err := s.Status(ctx)
		if err != nil {
			return err
		}
		from = status.Now.Add(-time.Second)
	}
	f.q.From = from
	return a.follow(ctx, s, f, seen)
}

// lastEvents are the newest that match, the oldest of them first.
func (a *app) lastEvents(ctx context.Context, s *service, f *eventFilter) ([]apitoken.Event, error) {
	var list []apitoken.Event
	for cursor := ""; ; {
		one, cancel := context.WithTimeout(ctx, a.timeout)
		page, next, err := s.EventPage(one, f.q, cursor, 1000)
		cancel()
		if err != nil {
			return nil, err
		}
		for i := range page {
			if f.Keeps(&page[i]) {
				list = append(list, page[i])
			}
		}
		if f.limit > 0 && len(list) >= f.limit {
			list = list[:f.limit]
			break
		}
		if cursor = next; next == "" {
			break
		}
	}
	slices.Reverse(list)
	return list, nil
}

func (a *app) follow(ctx context.Context, s *service, f *eventFilter, seen map[string]bool) error {
	place := export.Place{}
	for {
		one, cancel := context.WithTimeout(ctx, a.timeout)
		list, next, err := export.Next(one, s, f.q, place, 0)
		cancel()
		if ctx.Err() != nil {
			return nil // interrupted: that is how it ends
		}
		if err != nil {
			return err
		}
		place = next
		for i := range list {
			if f.Keeps(&list[i]) && !seen[list[i].ID] {
				if err := a.event(&list[i]); err != nil {
					return err
				}
			}
			delete(seen, list[i].ID)
		}
		if len(list) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// event prints one: a line, as JSON or for people.
func (a *app) event(e *apitoken.Event) error {
	if a.json {
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = a.out.Write(append(b, '\n'))
		return err
	}
	outcome := "ok"
	switch {
	case operate.IsAlert(e):
		outcome = "ALERT"
	case !e.OK:
		outcome = "NO"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %-18s %-5s", at(e.Time), e.Type, outcome)
	for _, x := range [][2]string{{"subject", e.Subject}, {"issuer", e.Issuer}, {"client", e.Client}, {"session", e.Grant}, {"token", e.TokenID}, {"target", e.Target.String()}, {"by", e.Actor}, {"reason", e.Reason}} {
		if x[1] != "" && x[1] != "none" {
			fmt.Fprintf(&b, " %s=%s", x[0], quoted(x[1]))
		}
	}
	if e.Count > 1 {
		fmt.Fprintf(&b, " times=%d", e.Count)
	}
	if e.Address.IsValid() {
		fmt.Fprintf(&b, " from=%s", e.Address)
	}
	line := clean(b.String())
	if w := a.width(); w > 0 {
		line = cut(line, w)
	}
	_, err := fmt.Fprintln(a.out, line)
	return err
}

// quoted is s, in quotes where it has spaces.
func quoted(s string) string {
	if strings.ContainsAny(s, " \"=") {
		return fmt.Sprintf("%q", s)
	}
	return s
}
