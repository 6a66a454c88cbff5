package apitoken

import "context"

// FlushUses writes what was counted now, and not in half a minute.
func FlushUses(s *Service) { s.audit.flush(context.Background()) }
