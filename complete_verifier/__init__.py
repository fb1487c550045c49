"""The tool: decides a property of a network in bounded time. It stands on auto_LiRPA, never the other way round."""
