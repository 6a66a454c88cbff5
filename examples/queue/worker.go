package main

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
)

// worker does jobs for whoever asked for them: each message has the asker's token in its header Authorization.
//
// The stream keeps that token until the job is done. Give a job a token of its own, with the scope that it needs and a life as long
// as it may wait: apitoken.Request.Grant issues one under the asker's session, and ends with it. DPoP proofs do not fit: they
// are good once and for a minute, and a message may come twice.
type worker struct {
	auth  *httpauth.Auth
	needs apitoken.Requirement
	do    func(ctx context.Context, job []byte) error
	// done is told how each delivery ended: nil, the refusal, or the error of do.
	done func(m jetstream.Msg, caller apitoken.Token, err error)
}

// handle decides about one delivery and does its job.
func (w *worker) handle(ctx context.Context, m jetstream.Msg) {
	caller, err := w.auth.Check(request(ctx, m), w.needs)
	var refusal *apitoken.Error
	switch {
	case errors.Is(err, apitoken.ErrUnavailable), errors.Is(err, apitoken.ErrLimited): // not now: the job stays in the queue
		delay := time.Second
		if errors.As(err, &refusal) && refusal.RetryAfter > delay {
			delay = refusal.RetryAfter
		}
		_ = m.NakWithDelay(delay) // the server delivers again in any case, after AckWait
	case err != nil: // the same message is refused tomorrow too
		_ = m.TermWithReason("refused")
	default:
		if err = w.do(apitoken.NewContext(ctx, caller), m.Data()); err != nil {
			_ = m.Nak()
		} else {
			_ = m.Ack()
		}
	}
	w.done(m, caller, err)
}

// request is a message as httpauth reads one: a POST to its subject. So a queue gives the verdicts that HTTP does.
func request(ctx context.Context, m jetstream.Msg) *http.Request {
	r := &http.Request{Method: http.MethodPost, URL: &url.URL{Path: "/" + m.Subject()}, Header: http.Header{}, Body: http.NoBody}
	for name, values := range m.Headers() {
		for _, v := range values {
			r.Header.Add(name, v) // NATS keeps the case in which the sender wrote it
		}
	}
	return r.WithContext(ctx)
}

// job is a message that asks for something with a token.
func job(subject, token string, data []byte) *nats.Msg {
	m := nats.NewMsg(subject)
	m.Header.Set("Authorization", "Bearer "+token)
	m.Data = data
	return m
}
