package export

import (
	"cmp"
	"encoding/json"
	"io"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

// OCSFVersion is the version of the Open Cybersecurity Schema Framework that [NewOCSF] writes.
const OCSFVersion = "1.4.0"

// OCSFOptions name the source of events in OCSF.
type OCSFOptions struct {
	Service string // service.name of each authentication: the issuer, say. Empty: "apitoken"
	Version string // metadata.product.version; empty: left out
	Tenant  string // metadata.tenant_uid; empty: left out
}

// OCSF writes events as JSON Lines in the Open Cybersecurity Schema Framework:
//
//	Authentication (3002)     tokens issued, refreshed, exchanged, refused, revoked, reused and leaked; tickets; refused clients
//	Account Change (3001)     clients, API keys, roles and signing keys that changed
//	Detection Finding (2004)  alerts
//
// What OCSF has no place for stands in unmapped. A SIEM recognises an event that came twice by metadata.uid.
type OCSF struct{ lines }

// NewOCSF writes to w, with one call of Write for each page of events.
func NewOCSF(w io.Writer, o OCSFOptions) *OCSF {
	return &OCSF{lines{w: w, encode: OCSFEncoder(o)}}
}

// OCSFEncoder returns the encoding of one event, for a [WebhookConfig].
func OCSFEncoder(o OCSFOptions) func(*apitoken.Event) ([]byte, error) {
	if o.Service == "" {
		o.Service = "apitoken"
	}
	return func(e *apitoken.Event) ([]byte, error) { return json.Marshal(o.event(e)) }
}

// OCSF objects, with the attributes that are filled here.
type (
	ocsfEvent struct {
		ActivityID   int            `json:"activity_id"`
		ActivityName string         `json:"activity_name"`
		CategoryUID  int            `json:"category_uid"`
		CategoryName string         `json:"category_name"`
		ClassUID     int            `json:"class_uid"`
		ClassName    string         `json:"class_name"`
		TypeUID      int            `json:"type_uid"`
		TypeName     string         `json:"type_name"`
		SeverityID   int            `json:"severity_id"`
		Severity     string         `json:"severity"`
		Time         int64          `json:"time"` // Unix ms
		StatusID     int            `json:"status_id"`
		Status       string         `json:"status"`
		StatusDetail string         `json:"status_detail,omitempty"`
		Message      string         `json:"message"`
		Count        int            `json:"count,omitempty"`
		Metadata     ocsfMetadata   `json:"metadata"`
		Finding      *ocsfFinding   `json:"finding_info,omitempty"`
		IsAlert      bool           `json:"is_alert,omitempty"`
		Evidences    []ocsfEvidence `json:"evidences,omitempty"`
		User         *ocsfUser      `json:"user,omitempty"`
		Actor        *ocsfActor     `json:"actor,omitempty"`
		Src          *ocsfEndpoint  `json:"src_endpoint,omitempty"`
		HTTP         *ocsfHTTP      `json:"http_request,omitempty"`
		Session      *ocsfSession   `json:"session,omitempty"`
		Service      *ocsfNamed     `json:"service,omitempty"`
		ProtocolID   int            `json:"auth_protocol_id,omitempty"`
		Protocol     string         `json:"auth_protocol,omitempty"`
		Unmapped     *ocsfUnmapped  `json:"unmapped,omitempty"`
	}
	// ocsfEvidence is whom and what a finding is about: a finding has no user or source of its own.
	ocsfEvidence struct {
		User  *ocsfUser     `json:"user,omitempty"`
		Actor *ocsfActor    `json:"actor,omitempty"`
		Src   *ocsfEndpoint `json:"src_endpoint,omitempty"`
		HTTP  *ocsfHTTP     `json:"http_request,omitempty"`
	}
	ocsfMetadata struct {
		Version   string      `json:"version"`
		Product   ocsfProduct `json:"product"`
		UID       string      `json:"uid"`
		EventCode string      `json:"event_code"` // our own type
		LogName   string      `json:"log_name"`
		Tenant    string      `json:"tenant_uid,omitempty"`
	}
	ocsfProduct struct {
		Name    string `json:"name"`
		Vendor  string `json:"vendor_name"`
		Version string `json:"version,omitempty"`
	}
	ocsfFinding struct {
		UID   string `json:"uid"`
		Title string `json:"title"`
	}
	ocsfUser struct {
		UID    string `json:"uid,omitempty"`
		Name   string `json:"name,omitempty"`
		Domain string `json:"domain,omitempty"` // the issuer of another's user
		TypeID int    `json:"type_id"`
		Type   string `json:"type"`
		// The token or API key that was used, or is spoken of.
		CredentialUID string `json:"credential_uid,omitempty"`
	}
	ocsfActor struct {
		User   *ocsfUser `json:"user,omitempty"`
		AppUID string    `json:"app_uid,omitempty"`
	}
	ocsfEndpoint struct {
		IP string `json:"ip"`
	}
	ocsfHTTP struct {
		UserAgent string `json:"user_agent,omitempty"`
		UID       string `json:"uid,omitempty"`
	}
	ocsfSession struct {
		UID           string `json:"uid,omitempty"`
		CredentialUID string `json:"credential_uid,omitempty"`
		Issuer        string `json:"issuer,omitempty"`
	}
	ocsfNamed struct {
		Name string `json:"name"`
	}
	ocsfUnmapped struct {
		Target string            `json:"target,omitempty"`
		Scopes apitoken.Scopes   `json:"scopes,omitempty"`
		Extra  map[string]string `json:"extra,omitempty"`
	}
)

const (
	classAccount = 3001
	classAuth    = 3002
	classFinding = 2004

	activityOther = 99 // of an activity, or a type of user: its name tells

	severityInfo   = 1
	severityLow    = 2
	severityMedium = 3
	severityHigh   = 4

	protocolOAuth = 6
)

var severities = map[int]string{severityInfo: "Informational", severityLow: "Low", severityMedium: "Medium", severityHigh: "High"}

// ocsfKind is what an event type is in OCSF.
type ocsfKind struct {
	class    int
	activity int
	name     string // of the activity
	severity int
}

func ocsfKindOf(e *apitoken.Event) ocsfKind {
	switch e.Type {
	case event.Issued:
		return ocsfKind{classAuth, 1, "Logon", severityInfo}
	case event.Prepared:
		return ocsfKind{classAuth, activityOther, "Ticket prepared", severityInfo}
	case event.Refreshed:
		return ocsfKind{classAuth, activityOther, "Token refreshed", severityInfo}
	case event.Exchanged:
		return ocsfKind{classAuth, activityOther, "Token exchanged", severityInfo}
	case event.Refused:
		return ocsfKind{classAuth, 1, "Logon", severityLow}
	case event.ClientRefused:
		return ocsfKind{classAuth, 1, "Logon", severityMedium}
	case event.Revoked:
		return ocsfKind{classAuth, 2, "Logoff", severityInfo}
	case event.Reused:
		return ocsfKind{classAuth, activityOther, "Token reused", severityHigh}
	case event.Leaked:
		return ocsfKind{classAuth, activityOther, "Token leaked", severityHigh}
	case event.Alert:
		severity := severityHigh
		switch {
		case e.OK: // an announcement, or something that was put right
			severity = severityLow
		case e.Extra["authentic"] == "false": // anybody can make it
			severity = severityMedium
		}
		return ocsfKind{classFinding, 1, "Create", severity}
	case event.ClientChanged, event.APIKeyChanged:
		switch e.Reason {
		case "created", "declared":
			return ocsfKind{classAccount, 1, "Create", severityInfo}
		case "enabled":
			return ocsfKind{classAccount, 2, "Enable", severityInfo}
		case "disabled":
			return ocsfKind{classAccount, 5, "Disable", severityInfo}
		case "revoked", "deleted":
			return ocsfKind{classAccount, 6, "Delete", severityInfo}
		}
		return ocsfKind{classAccount, activityOther, changeName(e), severityInfo}
	case event.RoleChanged, event.KeyChanged, event.RecordChanged:
		return ocsfKind{classAccount, activityOther, changeName(e), severityLow}
	}
	return ocsfKind{classAuth, activityOther, string(e.Type), severityInfo}
}

// changeName is an activity that OCSF has no number for.
func changeName(e *apitoken.Event) string {
	what, _, _ := strings.Cut(string(e.Type), ".")
	if e.Reason == "" || e.Type == event.RoleChanged {
		return what + " changed"
	}
	return what + " " + e.Reason
}

func (o *OCSFOptions) event(e *apitoken.Event) *ocsfEvent {
	k := ocsfKindOf(e)
	x := &ocsfEvent{
		ActivityID: k.activity, ActivityName: k.name, ClassUID: k.class, TypeUID: k.class*100 + k.activity, CategoryUID: k.class / 1000,
		SeverityID: k.severity, Severity: severities[k.severity],
		Time: e.Time.UnixMilli(), StatusID: 1, Status: "Success", StatusDetail: e.Reason, Count: e.Count,
		Message: string(e.Type),
		Metadata: ocsfMetadata{Version: OCSFVersion, Product: ocsfProduct{"apitoken", "apitoken-go", o.Version}, UID: e.ID,
			EventCode: string(e.Type), LogName: "audit", Tenant: o.Tenant},
	}
	if e.Reason != "" {
		x.Message += ": " + e.Reason
	}
	if !e.OK {
		x.StatusID, x.Status = 2, "Failure"
	}
	switch k.class {
	case classAuth:
		x.ClassName, x.CategoryName = "Authentication", "Identity & Access Management"
		x.Service, x.ProtocolID, x.Protocol = &ocsfNamed{o.Service}, protocolOAuth, "OAUTH 2.0"
	case classAccount:
		x.ClassName, x.CategoryName = "Account Change", "Identity & Access Management"
	case classFinding:
		x.ClassName, x.CategoryName = "Detection Finding", "Findings"
		x.StatusID, x.Status = 1, "New" // of a finding, not of an action
		x.IsAlert = true
		x.Finding = &ocsfFinding{UID: e.ID, Title: e.Reason}
		if x.Finding.Title == "" {
			x.Finding.Title = string(e.Type)
		}
	}
	x.TypeName = x.ClassName + ": " + x.ActivityName
	if k.activity == activityOther {
		x.TypeName = x.ClassName + ": Other"
	}
	if k.class != classFinding || e.Subject != "" || e.Client != "" {
		x.User = ocsfUserOf(e)
	}
	if e.Actor != "" {
		x.Actor = &ocsfActor{User: &ocsfUser{UID: e.Actor, Domain: e.ActorIssuer, TypeID: 0, Type: "Unknown"}}
	}
	if e.Client != "" {
		if x.Actor == nil {
			x.Actor = &ocsfActor{}
		}
		x.Actor.AppUID = e.Client
	}
	if e.Address.IsValid() {
		x.Src = &ocsfEndpoint{e.Address.WithZone("").String()}
	}
	if e.UserAgent != "" || e.RequestID != "" {
		x.HTTP = &ocsfHTTP{e.UserAgent, e.RequestID}
	}
	if k.class == classFinding {
		if found := (ocsfEvidence{x.User, x.Actor, x.Src, x.HTTP}); x.User != nil || x.Actor != nil || x.Src != nil {
			x.Evidences = []ocsfEvidence{found}
		}
		x.User, x.Actor, x.Src, x.HTTP = nil, nil, nil, nil
	}
	if k.class == classAuth && (e.Grant != "" || e.TokenID != "") {
		x.Session = &ocsfSession{e.Grant, e.TokenID, cmp.Or(e.Issuer, o.Service)}
	}
	if u := (ocsfUnmapped{e.Target.String(), e.Scopes, e.Extra}); u.Target != "" || len(u.Scopes) > 0 || len(u.Extra) > 0 {
		x.Unmapped = &u
	}
	return x
}

// ocsfUserOf is whom an event is about. The schema requires a user with a name or uid.
func ocsfUserOf(e *apitoken.Event) *ocsfUser {
	u := &ocsfUser{UID: e.Subject, Name: e.Subject, TypeID: 1, Type: "User", CredentialUID: e.TokenID}
	switch {
	case e.Subject != "":
		u.Domain = e.Issuer
	case e.Client != "":
		u.UID, u.Name, u.TypeID, u.Type = e.Client, e.Client, activityOther, "Service" // a number of its own has it since 1.6
	case e.Type == event.RoleChanged:
		u.Name, u.TypeID, u.Type = e.Reason, activityOther, "Role"
	case e.Type == event.RecordChanged:
		u.Name, u.TypeID, u.Type = e.Extra["kind"]+" "+e.Extra["record"], activityOther, "Record"
	case e.Type == event.KeyChanged:
		u.Name, u.TypeID, u.Type = "signing key "+e.Extra["kid"], activityOther, "Signing key"
	default:
		u.Name, u.TypeID, u.Type = "unknown", 0, "Unknown"
	}
	return u
}
