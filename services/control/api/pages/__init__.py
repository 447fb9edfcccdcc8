"""The pages of control that a person opens from a link, in plain forms; none of them is the API."""
