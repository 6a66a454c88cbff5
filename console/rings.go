package console

import (
	"encoding/csv"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/operate"
	"github.com/apitoken-go/apitoken/report"
)

// What operators do to the signing keys, and what they ask about tokens.

type signingRow struct {
	apitoken.SigningKey
	State template.HTML
	Class string
}

type signingPage struct {
	*page
	Rows     []signingRow
	Rotation time.Duration
	Kid      string
	Reason   string
	Errors   []fieldError
	Failed   template.HTML
}

var (
	saySigning     = say("Signing keys")
	sayStates      = map[string]string{"next": say("Next"), "active": sayActive, "retired": say("Retired"), "compromised": say("Compromised")}
	sayRotateRing  = say("Rotate the keys")
	sayWithdraw    = say("Withdraw the key")
	sayRoot        = say("Change the root secret")
	sayNoWithdraw  = say("No key was withdrawn.")
	sayErrKid      = say("Choose a key")
	sayCompromised = "compromised" // that is typed to confirm: the same in every language
)

func (c *Console) signingKeys(w http.ResponseWriter, r *http.Request, p *page) error {
	p.setFlash(r)
	return c.showSigning(w, r, &signingPage{page: p}, http.StatusOK)
}

func (c *Console) showSigning(w http.ResponseWriter, r *http.Request, v *signingPage, status int) error {
	p := v.page
	p.title, p.nav = p.text(saySigning), "/admin/signing-keys"
	v.Rotation = c.set.KeyRotation
	list, err := p.look.SigningKeys(r.Context())
	if err != nil {
		return err
	}
	classes := map[string]string{"next": "plain here", "active": "ok", "compromised": "bad"}
	for _, k := range list {
		row := signingRow{SigningKey: k, State: template.HTML(inHTML(k.State)), Class: classes[k.State]}
		if text, ok := sayStates[k.State]; ok {
			row.State = p.text(text)
		}
		v.Rows = append(v.Rows, row)
	}
	return p.show(w, status, "signing-keys", v)
}

// turned shows the signing keys after a change of them, or says that the change may not have been written.
func (c *Console) turned(w http.ResponseWriter, r *http.Request, done string, u unwritten, err error) error {
	if err != nil {
		return orUnwritten(err, u)
	}
	http.Redirect(w, r, c.url("/admin/signing-keys", "?done="+done), http.StatusSeeOther)
	return nil
}

func (c *Console) rotateKeys(w http.ResponseWriter, r *http.Request, p *page) error {
	return c.turned(w, r, "turned", unwritten{What: p.text(sayRotateRing)}, p.act.RotateSigningKeys(r.Context()))
}

func (c *Console) compromise(w http.ResponseWriter, r *http.Request, p *page) error {
	kid := r.PostForm.Get("kid")
	reason, errs := p.red(r, sayCompromised)
	if kid == "" {
		errs = append(errs, fieldError{"kid", p.text(sayErrKid)})
	}
	if len(errs) > 0 {
		return c.showSigning(w, r, &signingPage{page: p, Kid: kid, Reason: r.PostForm.Get("reason"), Errors: errs, Failed: p.text(sayNoWithdraw)}, http.StatusUnprocessableEntity)
	}
	return c.turned(w, r, "gone", unwritten{What: p.text(sayWithdraw), InForce: true}, p.act.Compromise(r.Context(), kid, reason))
}

func (c *Console) rootSecret(w http.ResponseWriter, r *http.Request, p *page) error {
	u := unwritten{What: p.text(sayRoot)}
	switch r.PostForm.Get("do") {
	case "rewrap":
		return c.turned(w, r, "rewrap", u, p.act.Rewrap(r.Context()))
	case "secrets":
		return c.turned(w, r, "secrets", u, p.act.RotateSecrets(r.Context()))
	}
	return errBody
}

type heldScope struct {
	Name string
	Off  bool
}

type findingRow struct {
	Key      apitoken.APIKey
	Idle     template.HTML
	NoExpiry bool
	Broad    bool
	Held     []heldScope
	Narrower []string
}

type hygienePage struct {
	*page
	Known   bool
	Age     time.Duration
	Rows    []findingRow
	Total   int
	Counts  [3]int
	More    bool // more findings than are kept
	Finding string
	Owner   string
	CSV     string
	pager
}

var sayHygiene = say("Hygiene")

func (c *Console) hygiene(w http.ResponseWriter, r *http.Request, p *page) error {
	p.title, p.nav = p.text(sayHygiene), "/admin/hygiene"
	q := r.URL.Query()
	v := &hygienePage{page: p, Finding: q.Get("finding"), Owner: q.Get("owner")}
	f, age, known := c.admin.hygiene.get(r.Context(), c.admin.ctx)
	v.Known, v.Age, v.More = known, age, f.More
	v.CSV = c.url("/admin/hygiene", query("finding", v.Finding, "owner", v.Owner, "as", "csv"))
	var found []*report.Finding
	for i := range f.Items {
		x := &f.Items[i]
		is := [3]bool{x.NoExpiry, x.Idle > 0, len(x.Unused) > 0 || len(x.Narrower) > 0}
		if v.Owner != "" && x.Key.Subject != v.Owner {
			continue
		}
		for n := range is {
			if is[n] {
				v.Counts[n]++
			}
		}
		if n := slices.Index([]string{"expiry", "unused", "broad"}, v.Finding); n < 0 || is[n] {
			found = append(found, x)
		}
	}
	v.Total = len(found)
	if q.Get("as") == "csv" {
		if !known {
			return apitoken.ErrUnavailable
		}
		return findingsCSV(w, found)
	}
	if after := q.Get("after"); after != "" {
		v.First = c.url("/admin/hygiene", query("finding", v.Finding, "owner", v.Owner))
		at := slices.IndexFunc(found, func(x *report.Finding) bool { return x.Key.ID == after })
		found = found[at+1:]
	}
	for _, x := range found[:min(len(found), pageSize)] {
		v.Rows = append(v.Rows, p.finding(x))
	}
	if len(found) > pageSize {
		v.Next = c.url("/admin/hygiene", query("finding", v.Finding, "owner", v.Owner, "after", v.Rows[pageSize-1].Key.ID))
	}
	return p.show(w, http.StatusOK, "hygiene", v)
}

// findingsCSV answers with findings as CSV (RFC 4180), for a spreadsheet. A field that one would take for a formula, as names may
// begin with =, begins with an apostrophe there.
func findingsCSV(w http.ResponseWriter, found []*report.Finding) error {
	w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
	w.Header().Set("Content-Disposition", `attachment; filename="hygiene.csv"`)
	out := csv.NewWriter(w)
	day := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	_ = out.Write([]string{"id", "owner", "name", "created", "last_used", "expires", "idle_days", "scopes", "unused_scopes", "enough"}) // Flush says it
	for _, x := range found {
		idle := ""
		if x.Idle > 0 {
			idle = strconv.Itoa(int(x.Idle.Hours() / 24))
		}
		row := []string{x.Key.ID, x.Key.Subject, x.Key.Name, day(x.Key.Created), day(x.Key.LastUsed), day(x.Key.Expires), idle, x.Key.Scopes.String(), apitoken.Scopes(x.Unused).String(), x.Narrower.String()}
		for i, s := range row {
			if s != "" && strings.Contains("=+-@\t\r", s[:1]) {
				row[i] = "'" + s
			}
		}
		_ = out.Write(row)
	}
	out.Flush()
	return out.Error()
}

func (p *page) finding(x *report.Finding) findingRow {
	row := findingRow{Key: x.Key, NoExpiry: x.NoExpiry, Broad: len(x.Unused) > 0 || len(x.Narrower) > 0, Narrower: p.Sorted(x.Narrower)}
	if x.Idle > 0 {
		row.Idle = p.text(sayUnused, p.Length(x.Idle))
	}
	for _, s := range p.Sorted(x.Key.Scopes) {
		row.Held = append(row.Held, heldScope{s, slices.Contains(x.Unused, apitoken.Scope(s))})
	}
	return row
}

type explainPage struct {
	*page
	Needs   string
	Any     bool
	Asked   bool
	Err     template.HTML
	Good    bool
	Answer  string
	Steps   []apitoken.Step
	Token   *apitoken.Token
	Claims  []string
	Leaked  int // credentials that were ended; -1: nothing was looked for
	Errors  []fieldError
	Failed  template.HTML
	Because string
}

var (
	sayExplain     = say("Explain a token")
	sayNoExplain   = say("There is no answer.")
	sayErrToken    = say("Paste an access token or an API key")
	sayErrNeeds    = say("The scopes cannot be read")
	sayErrText     = say("Paste the text that holds it, at most 1 MiB")
	sayGood        = say("It would be let in")
	sayRefusedFor  = say("Refused: %s")
	sayRevokeText  = say("Revoke what is in the text")
	sayVerdictText = map[string]string{ // by the class of the refusal
		"expired": say("expired"), "revoked": say("revoked"), "invalid_token": say("not valid"), "insufficient_scope": say("a scope is missing"),
		"unavailable": say("it cannot be known now"), "invalid_proof": say("bound to a key that was not proved"), "limited": say("a limit is reached"),
	}
)

func (c *Console) explainForm(w http.ResponseWriter, r *http.Request, p *page) error {
	return p.showExplain(w, http.StatusOK, &explainPage{page: p, Leaked: -1})
}

func (p *page) showExplain(w http.ResponseWriter, status int, v *explainPage) error {
	p.title, p.nav = p.text(sayExplain), "/admin/explain"
	return p.show(w, status, "explain", v)
}

func (c *Console) explain(w http.ResponseWriter, r *http.Request, p *page) error {
	in := r.PostForm
	v := &explainPage{page: p, Needs: strings.Join(strings.Fields(in.Get("needs")), " "), Any: in.Get("mode") == "any", Leaked: -1}
	token := strings.TrimSpace(in.Get("token"))
	token = strings.TrimPrefix(token, "Bearer ")
	if token == "" || strings.ContainsAny(token, " \r\n\t") {
		v.Errors = append(v.Errors, fieldError{"tk", p.text(sayErrToken)})
	}
	needs, err := apitoken.ParseScopes(v.Needs)
	if err != nil {
		v.Errors = append(v.Errors, fieldError{"rq", p.text(sayErrNeeds)})
	}
	if len(v.Errors) > 0 {
		v.Failed = p.text(sayNoExplain)
		return p.showExplain(w, http.StatusUnprocessableEntity, v)
	}
	x, err := p.look.Explain(r.Context(), token, needs, v.Any)
	if err != nil {
		return err
	}
	v.Asked, v.Good, v.Steps = true, x.Err == nil, x.Steps
	v.Answer, v.Err = "200", p.text(sayGood)
	if x.Err != nil {
		class := operate.ClassOf(x.Err).Name
		v.Answer = answerOf(x.Err)
		why := p.text(sayVerdictText["invalid_token"])
		if text, ok := sayVerdictText[class]; ok {
			why = p.text(text)
		}
		v.Err = p.text(sayRefusedFor, why)
	}
	if !x.Token.IsZero() {
		v.Token = &x.Token
	}
	return p.showExplain(w, http.StatusOK, v)
}

// answerOf is what a middleware answers to a request with such an error (RFC 6750 §3.1, RFC 9449 §7.1).
func answerOf(err error) string {
	switch class := operate.ClassOf(err); class.Name {
	case "insufficient_scope":
		return "403 insufficient_scope"
	case "unavailable", "limited":
		return strconv.Itoa(class.Status)
	case "invalid_proof":
		return "401 invalid_dpop_proof"
	}
	return "401 invalid_token"
}

// leaked ends what a text holds. The text is neither kept nor shown again.
func (c *Console) leaked(w http.ResponseWriter, r *http.Request, p *page) error {
	v := &explainPage{page: p, Leaked: -1, Because: strings.TrimSpace(r.PostForm.Get("reason"))}
	text := r.PostForm.Get("text")
	if strings.TrimSpace(text) == "" || len(text) > 1<<20 {
		v.Errors = append(v.Errors, fieldError{"lk", p.text(sayErrText)})
	}
	if _, err := operate.Reason(v.Because); err != nil {
		v.Errors = append(v.Errors, fieldError{"lw", p.text(sayErrReason)})
	}
	if len(v.Errors) > 0 {
		v.Failed = p.text(sayNotRevoked)
		return p.showExplain(w, http.StatusUnprocessableEntity, v)
	}
	n, err := p.act.RevokeLeaked(r.Context(), []byte(text), v.Because)
	if err != nil {
		return orUnwritten(err, unwritten{What: p.text(sayRevokeText), InForce: true, Pasted: true})
	}
	v.Leaked = n
	return p.showExplain(w, http.StatusOK, v)
}
