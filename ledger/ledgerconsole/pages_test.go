package ledgerconsole_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/console"
	"github.com/apitoken-go/apitoken/event"
)

// visit makes one request of an operator to the console of a ledger.
func (w *world) visit(t *testing.T, h http.Handler, path string, form url.Values) (int, string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "https://app.test/c"+path, nil)
	if form != nil {
		r = httptest.NewRequest(http.MethodPost, "https://app.test/c"+path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	a := httptest.NewRecorder()
	h.ServeHTTP(a, r)
	body, err := io.ReadAll(a.Result().Body)
	require.NoError(t, err)
	return a.Code, string(body)
}

// TestThePagesOfALedger: the overview says how far it is sealed, an event has its proof, and a form verifies the whole log.
func TestThePagesOfALedger(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w, other := start(t), start(t)
	h, err := console.New(w.svc, console.Options{Base: "/c", Faces: console.Admin, Ledger: w.pages, Actor: func(*http.Request) (console.Actor, error) {
		return console.Actor{Subject: "olga", Admin: console.Reader}, nil
	}})
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	w.issue(t)
	other.issue(t)
	kept, err := w.ledger.Seal(ctx)
	require.NoError(t, err)
	foreign, err := other.ledger.Seal(ctx)
	require.NoError(t, err)

	status, body := w.visit(t, h, "/admin", nil)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, `href="/c/admin/events#verify"`)
	require.Contains(t, body, "sealed")

	var id string
	for e, err := range w.svc.Events(ctx, apitoken.EventQuery{Type: event.Issued}) {
		require.NoError(t, err)
		id = e.ID
	}
	_, body = w.visit(t, h, "/admin/events/"+id, nil)
	require.Contains(t, body, "Proved")
	status, proof := w.visit(t, h, "/admin/events/"+id+"/proof", nil)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, proof, `"checkpoint"`)
	w.issue(t)
	for e, err := range w.svc.Events(ctx, apitoken.EventQuery{Type: event.Issued}) {
		require.NoError(t, err)
		if e.ID != id {
			_, body = w.visit(t, h, "/admin/events/"+e.ID, nil)
			require.NotContains(t, body, "Proved", "what is under no checkpoint is not proved")
		}
	}
	status, _ = w.visit(t, h, "/admin/events/nothing/proof", nil)
	require.Equal(t, http.StatusNotFound, status)

	// A browser sends the line ends of forms.
	for name, x := range map[string]struct {
		given string
		good  bool
	}{
		"the log's own":    {"", true},
		"kept":             {strings.ReplaceAll(string(kept), "\n", "\r\n"), true},
		"of another log":   {string(foreign), false},
		"no checkpoint":    {"<b>junk</b>", false},
		"kept, cut at end": {strings.TrimSpace(string(kept)), true},
	} {
		status, body = w.visit(t, h, "/admin/events/verify", url.Values{"checkpoint": {x.given}, "source": {"1"}})
		require.Equal(t, http.StatusOK, status, name)
		require.Equal(t, x.good, strings.Contains(body, "Nothing was changed"), "%s: %s", name, body)
		require.Equal(t, !x.good, strings.Contains(body, "Something was changed"), name)
		require.NotContains(t, body, "<b>junk")
	}
}
